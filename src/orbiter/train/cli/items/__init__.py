"""Commands on files of items: check, convert, select, combine, split."""
