"""Imports traces: converts OpenTelemetry, Langfuse and LangSmith spans to items."""
