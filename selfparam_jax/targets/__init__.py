"""Target sentences: what the student is trained on.

config.py            the settings
kinds.py             the kinds of sentences, by name, and `make_targets`
sentences.py         a sentence, and where its hidden states are stored
choose_pairs.py      which question-answer pairs are trained on
write_pairs.py       pairs written by a model, in rounds, and their file
writers.py           who writes them, by name: the model itself, or a server
endpoint.py          the server; replies.py its paid-for replies
question_prompts.py  how a model is asked (question_prompts.toml); parse_pairs.py reads its replies
filter_pairs.py      which written pairs are used
texts.py             texts that are written, as pairs with long answers
distractors.py       other documents in the teacher's prompt
self_sampling.py     unrelated text from the model itself
"""
