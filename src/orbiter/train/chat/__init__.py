"""Chat messages: one type, the dialects of the APIs, and their form as text."""
