"""No statistics: functions of each value."""
