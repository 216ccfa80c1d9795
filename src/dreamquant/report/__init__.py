"""The report of one job: a page that stands alone, made from what is in the job's folder."""

from dreamquant.report.page import write_report

__all__ = ["write_report"]
