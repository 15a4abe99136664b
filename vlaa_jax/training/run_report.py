"""The report of a run."""

import pathlib

from vlaa_jax.processing.records import RecordSource
from vlaa_jax.training.run_folder import RunFolder


def write_run_report(folder: RunFolder, source: RecordSource | None) -> pathlib.Path:
    return folder.report_path
