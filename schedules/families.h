/* The schedule families, one row of the registry each. */
#ifndef SCHEDULES_FAMILIES_H
#define SCHEDULES_FAMILIES_H

#include "schedules/schedule.h"

extern const sched_family family_gpipe, family_1f1b, family_interleaved_1f1b;
extern const sched_family family_seq1f1b, family_seq1f1b_i, family_seq1f1b_zb, family_terapipe;
extern const sched_family family_bitpipe, family_chimera, family_hanayo;
extern const sched_family family_dualpipe, family_dualpipev;
extern const sched_family family_vocab_1, family_vocab_2, family_interlaced, family_v_half_vocab;
extern const sched_family family_zb_h1, family_zb_h2, family_zb_v, family_interleaved_zb;
extern const sched_family family_v_half, family_v_min, family_1f1b_v, family_zb_auto;
extern const sched_family family_fbd;

#endif
