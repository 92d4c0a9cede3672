"""What makes many edited runs cheap: batches by measured memory, runs resumed at a layer, the last blocks alone."""
