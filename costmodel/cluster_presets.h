/* The clusters known by name, as JSON texts: a start for a file of one's own. */
#ifndef COSTMODEL_CLUSTER_PRESETS_H
#define COSTMODEL_CLUSTER_PRESETS_H

/* The JSON text of a preset, or NULL. "local" has none: it is this machine. */
const char *cluster_preset_json(const char *name);

#endif
