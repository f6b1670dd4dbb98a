"""Chat messages: one type, the API dialects, and their form as text."""
