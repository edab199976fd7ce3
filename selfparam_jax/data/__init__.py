"""Documents and texts, and how they become rows of token ids.

documents.py  a document, its questions and pairs; reading files and folders
readers/      files of other kinds: HTML, PDF, notebooks, conversations, ...
passages.py   long documents, cut along their structure (blocks.py, sentences.py, retrieval.py)
corpora.py    data sets by name; `read_documents` and `read_texts` read everything
prompts.py    prompt formats: text to token ids
packing.py    several sentences in a row
"""
