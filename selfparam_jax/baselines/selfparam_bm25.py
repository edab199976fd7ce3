"""The injected model that also reads the passages which BM25 finds: both ways to a document together."""

from selfparam_jax.baselines._retrieved import RetrievalOptions
from selfparam_jax.baselines.bm25 import RetrievedByWords
from selfparam_jax.evaluation.systems import SystemEntry


class InjectedAndRetrieved(RetrievedByWords):
    """The base with the job's adapter, after passages that BM25 finds."""

    def variables(self) -> dict:
        return super().variables() | {"lora": self.setup.lora}


SYSTEM = SystemEntry(
    "selfparam_bm25",
    "Injected + BM25",
    "question, after the passages that share most words with it",
    "baseline",
    InjectedAndRetrieved,
    needs_injection=True,
    in_sequence=False,
    options=RetrievalOptions,
)
