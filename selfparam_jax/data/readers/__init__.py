"""Files of other kinds as text: a reader a kind, found by the suffix in `registry.READERS`.

texts.py   plain text, Markdown, reStructuredText
code.py    source code and notebooks
web.py     HTML and EPUB, as Markdown (extra `documents`)
office.py  PDF, Word and PowerPoint, as Markdown (extra `documents`)
chats.py   conversations: `messages`, ShareGPT, prompt and completion, transcripts
"""
