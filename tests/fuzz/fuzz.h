/* What a fuzz target is: a function that must not crash, hang, leak or lie on any bytes. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

/* A refusal has a message of one line; anything else is a defect. */
static inline void fuzz_check(td_status st, const td_err *err)
{
    if (st == TD_OK) return;
    if (err->msg[0] != '\0' && strchr(err->msg, '\n') == NULL) return;
    (void)fprintf(stderr, "the refusal is not one line: \"%s\"\n", err->msg);
    abort();
}

/* A law that any accepted input keeps. */
static inline void fuzz_law(bool holds, const char *law, const td_err *err)
{
    if (holds) return;
    (void)fprintf(stderr, "broken: %s (%s)\n", law, err->msg);
    abort();
}

#endif
