"""From records to one HTML file that needs nothing else: `summarize` -> dict -> `render`; `signing` lets a stranger check it."""
