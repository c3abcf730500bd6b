/* The transport over MPI: one communicator of our own, lanes are tags. Sends are synchronous ones:
 * nothing is buffered, so an order that would hang with large messages hangs with small ones. */
#include "exec/transport.h"

#if TD_HAVE_MPI
#include <mpi.h>

#include <limits.h>
#include <string.h>

typedef struct mpi_state {
    MPI_Comm comm;
    int last_tag;
    bool ours; /* this transport started MPI */
} mpi_state;

static td_status failed(int code, const char *what, td_err *err)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int len = 0;
    (void)MPI_Error_string(code, text, &len);
    return td_fail(err, TD_EDEVICE, "MPI: %s: %.300s", what, text);
}

_Static_assert(sizeof(MPI_Request) <= sizeof(uint64_t), "a request is kept as a number");

static MPI_Request request_of(const transport_request *r)
{
    MPI_Request q;
    memcpy(&q, &r->handle, sizeof q);
    return q;
}

static void keep_request(transport_request *r, MPI_Request q)
{
    memcpy(&r->handle, &q, sizeof q);
    r->done = false;
}

enum { CHUNK_BITS = 20, LARGEST_INT_BYTES = INT_MAX };

/* Counts of MPI are ints: what is larger goes as chunks of a MiB and a rest. */
static int type_of(int64_t bytes, MPI_Datatype *type, int *count)
{
    *type = MPI_BYTE;
    *count = (int)bytes;
    if (bytes <= LARGEST_INT_BYTES) return MPI_SUCCESS;
    const int64_t chunks = bytes >> CHUNK_BITS;
    int lengths[2] = {(int)chunks, (int)(bytes - (chunks << CHUNK_BITS))};
    MPI_Aint at[2] = {0, (MPI_Aint)(chunks << CHUNK_BITS)};
    MPI_Datatype types[2] = {MPI_DATATYPE_NULL, MPI_BYTE};
    int rc = MPI_Type_contiguous(1 << CHUNK_BITS, MPI_BYTE, &types[0]);
    if (rc == MPI_SUCCESS) rc = MPI_Type_create_struct(2, lengths, at, types, type);
    if (rc == MPI_SUCCESS) rc = MPI_Type_commit(type);
    if (types[0] != MPI_DATATYPE_NULL) (void)MPI_Type_free(&types[0]);
    *count = 1;
    return rc;
}

static td_status start(transport *t, transport_request *r, bool send, td_err *err)
{
    const mpi_state *const m = t->state;
    const char *const what = send ? "send" : "receive";
    r->send = send;
    if ((int64_t)r->lane > m->last_tag)
        return td_fail(err, TD_EUSAGE, "MPI: %u channels are more than its %d tags", r->lane,
                       m->last_tag);
    MPI_Datatype type = MPI_BYTE;
    int count = 0;
    int rc = type_of(r->bytes, &type, &count);
    if (rc != MPI_SUCCESS) return failed(rc, what, err);
    MPI_Request q = MPI_REQUEST_NULL;
    rc = send ? MPI_Issend(r->data, count, type, (int)r->peer, (int)r->lane, m->comm, &q)
              : MPI_Irecv(r->data, count, type, (int)r->peer, (int)r->lane, m->comm, &q);
    if (type != MPI_BYTE) (void)MPI_Type_free(&type);
    if (rc != MPI_SUCCESS) return failed(rc, what, err);
    keep_request(r, q);
    return TD_OK;
}

static td_status send_mpi(transport *t, transport_request *r, td_err *err)
{
    return start(t, r, true, err);
}

static td_status recv_mpi(transport *t, transport_request *r, td_err *err)
{
    return start(t, r, false, err);
}

static td_status test_mpi(transport *t, transport_request *r, td_err *err)
{
    (void)t;
    if (r->done) return TD_OK;
    MPI_Request q = request_of(r);
    MPI_Status status;
    int done = 0;
    const int rc = MPI_Test(&q, &done, &status);
    if (rc != MPI_SUCCESS) {
        (void)failed(rc, r->send ? "send" : "receive", err);
        return td_wrap(err, "rank %u", r->peer);
    }
    keep_request(r, q);
    if (!done) return TD_OK;
    r->done = true;
    MPI_Count got = r->bytes;
    if (!r->send) (void)MPI_Get_elements_x(&status, MPI_BYTE, &got);
    if (got == r->bytes) return TD_OK;
    return td_fail(err, TD_EPLAN, "MPI: %lld bytes came from rank %u where %lld were to come",
                   (long long)got, r->peer, (long long)r->bytes);
}

static void close_mpi(transport *t, bool broken)
{
    mpi_state *const m = t->state;
    if (broken || !m->ours) return; /* the launcher sees the exit code; finalizing could hang */
    (void)MPI_Comm_free(&m->comm);
    (void)MPI_Finalize();
}

td_status transport_open_mpi(td_arena *a, transport *out, td_err *err)
{
    static const transport_methods methods = {
        .name = "mpi", .send = send_mpi, .recv = recv_mpi, .test = test_mpi, .close = close_mpi};
    mpi_state *const m = TD_NEW(a, mpi_state);
    if (m == NULL) return td_fail(err, TD_ENOMEM, "out of memory for MPI");
    int given = 0, started = 0, index = 0, size = 0, found = 0, *tags = NULL;
    (void)MPI_Initialized(&started);
    int rc = MPI_SUCCESS;
    if (started)
        (void)MPI_Query_thread(&given);
    else
        rc = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &given);
    if (rc != MPI_SUCCESS) return failed(rc, "start", err);
    m->ours = !started;
    if (given < MPI_THREAD_SERIALIZED)
        return td_fail(err, TD_EDEVICE, "MPI: it was built without support of threads");
    rc = MPI_Comm_dup(MPI_COMM_WORLD, &m->comm);
    if (rc != MPI_SUCCESS) return failed(rc, "start", err);
    (void)MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN);
    (void)MPI_Comm_rank(m->comm, &index);
    (void)MPI_Comm_size(m->comm, &size);
    (void)MPI_Comm_get_attr(m->comm, MPI_TAG_UB, (void *)&tags, &found);
    m->last_tag = found ? *tags : 32767;
    *out = (transport){
        .methods = &methods, .index = (uint32_t)index, .size = (uint32_t)size, .state = m};
    return TD_OK;
}

#else

td_status transport_open_mpi(td_arena *a, transport *out, td_err *err)
{
    (void)a;
    (void)out;
    return td_fail(err, TD_EUSAGE,
                   "--wire mpi: this build has no MPI; install OpenMPI's development package "
                   "(libopenmpi-dev) and build again, or use --wire threads");
}

#endif
