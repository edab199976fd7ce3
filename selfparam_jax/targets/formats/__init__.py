"""The forms in which pairs are read: reading format, conversation, bare question.

forms.py        the forms by name, and what the teacher reads for each
statements.py   a question and its answer as a sentence, by rule
verbs.py        the verb forms that these rules need
contrast.py     questions about other, invented names: what was learned must not be told of them
"""
