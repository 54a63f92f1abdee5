"""Settings that put things of one subject side by side: each file measures one comparison and answers with a record."""
