/* The models known by name. */
#ifndef COSTMODEL_MODEL_PRESETS_H
#define COSTMODEL_MODEL_PRESETS_H

#include "costmodel/model.h"

/* A preset, or NULL. */
const model_desc *model_preset(const char *name);

#endif
