"""The paper's three models, each with sizes for a TPU slice or a GPU machine."""
