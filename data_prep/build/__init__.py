"""The six steps of VLAA-Thinking (section 2): sources and models in, shards of records out."""
