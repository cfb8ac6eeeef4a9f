"""One page of what the monitors measured: as a file, and as a tab of TensorBoard."""

from normzoo.page.report_file import report as report
