"""How text is produced: a prompt is read once, compressed by every press, and all answers are decoded together."""

from pipeline.pipeline import CompressingPipeline
from pipeline.prefill import Variant
from pipeline.prompt import Question
from pipeline.results import Request

__all__ = ["CompressingPipeline", "Question", "Request", "Variant"]
