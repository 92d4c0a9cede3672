"""A language model that is asked about features, behind an endpoint or from a folder."""
