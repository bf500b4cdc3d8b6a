"""The detector behind an HTTP address: requests are batched together; extra "serve"."""
