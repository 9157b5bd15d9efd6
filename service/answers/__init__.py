"""What is said of an explanation: reply, record, reasons, disclosure."""
