"""What the units of a layer did, accumulated as the dictionary streams by: the metric and what it keeps."""
