"""Forward passes of a language model: the generic one and the fast one."""
