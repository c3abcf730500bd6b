/* What every test needs: cmocka, an arena for each test, assertions that print what they saw. */
#ifndef TESTS_SUPPORT_T_H
#define TESTS_SUPPORT_T_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

enum { T_SKIPPED = 77 };

/* The call succeeds; prints its message if not. */
#define T_OK(call, err)                                                                            \
    do {                                                                                           \
        const td_status t_status_ = (call);                                                        \
        if (t_status_ != TD_OK)                                                                    \
            fail_msg("%s: %s (%s)", #call, (err)->msg, td_status_text(t_status_));                 \
    } while (0)

/* The call fails with this status and a message that holds `part`. */
#define T_FAILS(call, status, err, part)                                                           \
    do {                                                                                           \
        (err)->msg[0] = '\0';                                                                      \
        const td_status t_status_ = (call);                                                        \
        if (t_status_ != (status))                                                                 \
            fail_msg("%s: %s instead of %s", #call, td_status_text(t_status_),                     \
                     td_status_text(status));                                                      \
        if (strstr((err)->msg, (part)) == NULL)                                                    \
            fail_msg("%s: \"%s\" does not say \"%s\"", #call, (err)->msg, (part));                 \
    } while (0)

/* |got - want| <= atol + rtol * |want|; cmocka 1.1.5 compares doubles as integers. */
#define T_CLOSE(got, want, rtol, atol)                                                             \
    do {                                                                                           \
        const double t_got_ = (got), t_want_ = (want);                                             \
        const double t_room_ = (atol) + (rtol)*fabs(t_want_);                                      \
        if (!(fabs(t_got_ - t_want_) <= t_room_))                                                  \
            fail_msg("%s is %.17g, wanted %.17g within %.3g, off by %.3g", #got, t_got_, t_want_,  \
                     t_room_, fabs(t_got_ - t_want_));                                             \
    } while (0)

static inline int t_arena_setup(void **state)
{
    *state = td_arena_new();
    return *state != NULL ? 0 : -1;
}

static inline int t_arena_teardown(void **state)
{
    td_arena_free(*state);
    return 0;
}

/* A test that finds a fresh arena in *state. */
#define T_TEST(function) cmocka_unit_test_setup_teardown(function, t_arena_setup, t_arena_teardown)

#endif
