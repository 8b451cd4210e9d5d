"""An asynchronous schedule on Ray: one actor a part, batches in buffers that outlive them."""
