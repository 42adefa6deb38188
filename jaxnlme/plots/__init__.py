"""Pictures: functions of plain tables that draw into given axes, or make a figure of their own."""
