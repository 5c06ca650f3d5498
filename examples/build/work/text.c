const char *text = "hello from a sandbox";
