"""From a quantized model to files that other runtimes read."""

from dreamquant.export.onnx import ExportReport, export

__all__ = ["ExportReport", "export"]
