"""What the monitors of `normzoo.callbacks` share: probes, samples, copies of the module, and the writing of events."""

from normzoo.monitoring.monitor import Monitor as Monitor
from normzoo.monitoring.probe import Probe as Probe
from normzoo.monitoring.schedule import Every as Every
from normzoo.monitoring.schedule import Logarithmic as Logarithmic
