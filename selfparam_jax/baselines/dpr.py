"""DPR (arXiv 2004.04906): the passages whose vectors have the largest inner product with the question's stand before
it in the prompt."""

import dataclasses
import functools

from selfparam_jax.baselines._encoded import EncoderOptions, RetrievedByVectors, why_no_encoder
from selfparam_jax.evaluation.systems import SystemEntry


@dataclasses.dataclass(frozen=True)
class DprOptions(EncoderOptions):
    """What is retrieved, and what with; `_encoded.EncoderOptions` has the fields."""

    question_encoder: str = "facebook/dpr-question_encoder-single-nq-base"
    context_encoder: str = "facebook/dpr-ctx_encoder-single-nq-base"


class Dpr(RetrievedByVectors):
    """The base after the passages of the largest inner product."""

    name = "dpr"


SYSTEM = SystemEntry(
    "dpr",
    "Base + DPR",
    "question, after the passages whose vectors are nearest to its own",
    "baseline",
    Dpr,
    options=DprOptions,
    unavailable=functools.partial(why_no_encoder, "dpr"),
)
