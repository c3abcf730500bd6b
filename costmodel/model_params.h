/* Parameters of a model's parts, whole (before tensor parallelism). */
#ifndef COSTMODEL_MODEL_PARAMS_H
#define COSTMODEL_MODEL_PARAMS_H

#include "costmodel/model.h"

int64_t model_layer_params(const model_desc *m);     /* of one layer */
int64_t model_embedding_params(const model_desc *m); /* token, position, type tables */
int64_t model_head_params(const model_desc *m);      /* final norm and head, with its table */

#endif
