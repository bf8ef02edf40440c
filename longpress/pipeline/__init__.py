"""How text is produced: a prompt is read once, compressed by every press, and all answers are decoded together."""

from longpress.pipeline.facade import CompressingPipeline
from longpress.pipeline.prefill import Variant
from longpress.pipeline.prompt import Question
from longpress.pipeline.results import Request

__all__ = ["CompressingPipeline", "Question", "Request", "Variant"]
