"""Question-answer pairs made from the sentences of a document by rules of English grammar."""
