#include <stdio.h>

extern const char *text;

int main(void)
{
	return puts(text) < 0;
}
