"""From a record to what people read of it, in a terminal and as Markdown."""
