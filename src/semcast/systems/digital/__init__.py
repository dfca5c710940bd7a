"""Digital chains: a video or picture codec of today, packets, LDPC and QAM (or the capacity bound) of the link."""
