/* What a foreign project does first: include a header, call a function, look at its answer. */
#include <base/text.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    char text[32];
    puts(td_print_bytes(text, sizeof text, (int64_t)80 << 30));
    return strcmp(text, "80.0 GiB") == 0 ? 0 : 1;
}
