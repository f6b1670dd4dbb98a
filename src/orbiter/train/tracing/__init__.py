"""Import of traces: OpenTelemetry, Langfuse and LangSmith spans become items."""
