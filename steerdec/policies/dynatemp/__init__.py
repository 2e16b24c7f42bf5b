"""dynatemp: a temperature that grows with the entropy (llama.cpp's temp_ext)."""
