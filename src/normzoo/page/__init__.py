"""One page of what the monitors measured, and of how runs compare: as a file, and as a tab of TensorBoard."""

from normzoo.page.report_file import compare as compare
from normzoo.page.report_file import report as report
