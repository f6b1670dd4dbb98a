"""The HTTP libraries whose calls are captured and answered in this process, a file for each."""
