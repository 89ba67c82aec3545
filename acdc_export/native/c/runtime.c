/* Models: their memory, their threads, and the way through the steps.

   A step is cut into pieces, more than there are threads. Who has time takes the next piece, so a thread that the
   system holds up costs the others nothing but the piece that it has begun. A step begins when all pieces of the one
   before are done. Who waits for that looks for a few microseconds, then sleeps: a sleeping thread's processor is free
   for the one that is waited for.

   A batch of at least as many samples as threads goes a sample to a thread: no thread waits for another then. */
#include <cpuid.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LOOKS = 2000, MOST_THREADS = 1024, SLACK = 4096 }; /* words before and after memory that loads may touch */

struct worker {
    struct model *model;
    int index;
    pthread_t thread;
};

struct model {
    int threads, set, started;
    const float *const *inputs;
    float *const *outputs;
    float *memory;                  /* an arena for each thread */
    struct segments *segments;      /* of all steps */
    struct tiling *tiling;
    atomic_uint_least64_t *next;    /* of each step: the run in the upper half, the next piece in the lower */
    atomic_uint_least64_t *done;    /* of each step: the run, and how many pieces are done */
    atomic_uint_least64_t sample;   /* where samples go to threads: the run, and the next sample */
    atomic_uint_least64_t samples_done;
    atomic_uint run;                /* counts runs; 0 tells the workers to end */
    atomic_int waiting, ending;
    int by_sample, first_sample, sample_count;
    pthread_mutex_t calls, lock;
    pthread_cond_t changed;
    struct worker *workers;
    _Atomic double *ended;          /* of each step, while profiling: when its last piece was done, in nanoseconds */
    int profiling;
};

static run_piece *const runners[SETS] = {RUNNERS};
static const int *const lanes[SETS] = {LANES_OF_SETS};

static int has_avx_vnni(void)
{
    unsigned a = 0, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4;
}

static int supported(int set)
{
    __builtin_cpu_init();
    switch (set) {
    case 0: return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    case 1: return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq");
    case 2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_avx_vnni();
    case 3: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
    return 0;
}

/* The best set that was compiled and that the processor has; -1 if there is none. */
static int best_set(void)
{
    const char *forced = getenv("MODEL_INSTRUCTION_SET"); /* to test the others */
    for (int set = 0; set < SETS; set++)
        if (runners[set] && supported(set) && (!forced || !*forced || !strcmp(forced, set_names[set])))
            return set;
    return -1;
}

const model_description *model_describe(void) { return &description; }

const char *model_instruction_set(void) { return best_set() < 0 ? 0 : set_names[best_set()]; }

const char *model_layer_name(int layer) { return layer < 0 || layer >= STEPS ? 0 : steps[layer].name; }

const char *model_layer_operator(int layer) { return layer < 0 || layer >= STEPS ? 0 : steps[layer].operator_; }

const char *model_error(int status)
{
    static const char *const texts[] = {
        "no error",
        "a pointer is null",
        "the number of threads is not 1 to 1024",
        "the batch size is not 1 or more",
        "there is not enough memory",
        "the processor has none of the instruction sets that this library was compiled for",
        "the system started no thread",
        "the system refused to use these processors",
    };
    return status < 0 || status > MODEL_AFFINITY ? "unknown status" : texts[status];
}

/* Cut the pixels of a product into vectors, and say where the lanes of each go. Pixels of an output row are side by
   side, but rows may have another distance in the output than in the input. */
static int make_segments(const struct product *p, int width, struct segments *s)
{
    int span = (p->height - 1) * p->in.pitch + p->width;
    s->vectors = (span + width - 1) / width;
    s->each = 0;
    s->list = 0;
    if (p->contiguous)
        return 1;
    for (int fill = 0; fill < 2; fill++) {
        for (int v = 0; v < s->vectors; v++) {
            int used = 0, last_out = 0, last_residual = 0;
            for (int lane = 0; lane < width; lane++) {
                int pixel = v * width + lane, y = pixel / p->in.pitch, x = pixel % p->in.pitch;
                if (x >= p->width || y >= p->height)
                    continue;
                int out = y * p->out.pitch + x - lane, residual = y * p->residual.pitch + x - lane;
                if (!used || out != last_out || residual != last_residual)
                    used++;
                last_out = out, last_residual = residual;
                if (fill) {
                    struct segment *segment = s->list + (long)v * s->each + used - 1;
                    segment->mask |= 1u << lane, segment->out = out, segment->residual = residual;
                }
            }
            if (used > s->each && !fill)
                s->each = used;
        }
        if (!fill && !(s->list = calloc((size_t)s->vectors * s->each, sizeof *s->list)))
            return 0;
    }
    return 1;
}

static int pieces_of(const struct model *m, int step)
{
    const struct tiling *t = m->tiling + step;
    return t->pixel_pieces * t->channel_pieces;
}

static float *arena_of(const struct model *m, int thread) { return m->memory + SLACK + (long)thread * ARENA; }

static void fill(float *arena)
{
    for (int b = 0; b < BORDERS; b++)
        for (long i = 0; i < borders[b].words; i++)
            memcpy(arena + borders[b].base + i, &borders[b].value, sizeof(float));
}

static void pause_briefly(void) { __builtin_ia32_pause(); }

static uint64_t tagged(unsigned run, unsigned count) { return (uint64_t)run << 32 | count; }

/* The next of `count` pieces: -1 when there is none, -2 when the run is over. */
static int take(atomic_uint_least64_t *next, unsigned run, unsigned count)
{
    uint64_t seen = atomic_load(next);
    for (;;) {
        if (seen >> 32 != run)
            return -2;
        if ((unsigned)seen >= count)
            return -1;
        if (atomic_compare_exchange_weak(next, &seen, seen + 1))
            return (int)(unsigned)seen;
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* A piece is done. The last times that are noted are those of the last pieces. */
static void finish(struct model *m, atomic_uint_least64_t *done, unsigned count, _Atomic double *ended)
{
    if (m->profiling && ended)
        atomic_store(ended, now());
    if ((unsigned)(atomic_fetch_add(done, 1) + 1) == count && atomic_load(&m->waiting)) {
        pthread_mutex_lock(&m->lock);
        pthread_cond_broadcast(&m->changed);
        pthread_mutex_unlock(&m->lock);
    }
}

static int is_done(atomic_uint_least64_t *done, unsigned run, unsigned count)
{
    uint64_t seen = atomic_load(done);
    return seen >> 32 != run || (unsigned)seen >= count;
}

static void await(struct model *m, atomic_uint_least64_t *done, unsigned run, unsigned count)
{
    for (int look = 0; look < LOOKS; look++) {
        if (is_done(done, run, count))
            return;
        pause_briefly();
    }
    pthread_mutex_lock(&m->lock);
    atomic_fetch_add(&m->waiting, 1);
    while (!is_done(done, run, count))
        pthread_cond_wait(&m->changed, &m->lock);
    atomic_fetch_sub(&m->waiting, 1);
    pthread_mutex_unlock(&m->lock);
}

/* One sample, by all threads: each comes here. */
static void share(struct model *m, unsigned run)
{
    struct frame frame = {arena_of(m, 0), m->inputs, m->outputs, m->first_sample, m->segments};
    for (int i = 0; i < STEPS; i++) {
        unsigned count = (unsigned)pieces_of(m, i);
        int piece;
        while ((piece = take(m->next + i, run, count)) >= 0) {
            runners[m->set](steps + i, m->tiling + i, m->segments + i, &frame, piece, (int)count);
            finish(m, m->done + i, count, m->ended + i);
        }
        if (piece == -2)
            return;
        await(m, m->done + i, run, count);
    }
}

/* Whole samples, each by one thread. */
static void take_samples(struct model *m, unsigned run, int thread)
{
    int sample;
    while ((sample = take(&m->sample, run, (unsigned)m->sample_count)) >= 0) {
        struct frame frame = {arena_of(m, thread), m->inputs, m->outputs, m->first_sample + sample, m->segments};
        for (int i = 0; i < STEPS; i++)
            for (int piece = 0, count = pieces_of(m, i); piece < count; piece++)
                runners[m->set](steps + i, m->tiling + i, m->segments + i, &frame, piece, count);
        finish(m, &m->samples_done, (unsigned)m->sample_count, 0);
    }
}

static void work(struct model *m, unsigned run, int thread, int by_sample)
{
    if (by_sample)
        take_samples(m, run, thread);
    else
        share(m, run);
}

static void *worker(void *argument)
{
    struct worker *w = argument;
    struct model *m = w->model;
    unsigned seen = 0;
    for (;;) {
        for (int look = 0; look < LOOKS && atomic_load(&m->run) == seen && !atomic_load(&m->ending); look++)
            pause_briefly();
        pthread_mutex_lock(&m->lock);
        while (atomic_load(&m->run) == seen && !atomic_load(&m->ending))
            pthread_cond_wait(&m->changed, &m->lock);
        seen = atomic_load(&m->run);
        int by_sample = m->by_sample;
        pthread_mutex_unlock(&m->lock);
        if (atomic_load(&m->ending))
            return 0;
        work(m, seen, w->index, by_sample);
    }
}

/* Begin a run: set all counters to it, then wake the workers. */
static unsigned begin(struct model *m, int by_sample, int first, int count)
{
    pthread_mutex_lock(&m->lock);
    unsigned run = atomic_load(&m->run) + 1;
    m->by_sample = by_sample, m->first_sample = first, m->sample_count = count;
    for (int i = 0; i < STEPS; i++) {
        atomic_store(m->done + i, tagged(run, 0));
        atomic_store(m->next + i, tagged(by_sample ? run - 1 : run, 0));
    }
    atomic_store(&m->samples_done, tagged(run, 0));
    atomic_store(&m->sample, tagged(by_sample ? run : run - 1, 0));
    atomic_store(&m->run, run);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    return run;
}

static void run_batch(struct model *m, int batch)
{
    int whole = m->threads > 1 ? batch / m->threads * m->threads : batch;
    if (whole) {
        unsigned run = begin(m, 1, 0, whole);
        take_samples(m, run, 0);
        await(m, &m->samples_done, run, (unsigned)whole);
    }
    for (int sample = whole; sample < batch; sample++)
        share(m, begin(m, 0, sample, 1));
}

static int check(const model *m, const float *const *inputs, float *const *outputs)
{
    if (!m || !inputs || !outputs)
        return MODEL_NULL;
    for (int i = 0; i < description.input_count; i++)
        if (!inputs[i])
            return MODEL_NULL;
    for (int i = 0; i < description.output_count; i++)
        if (!outputs[i])
            return MODEL_NULL;
    return MODEL_OK;
}

int model_run(model *m, int batch, const float *const *inputs, float *const *outputs)
{
    int status = check(m, inputs, outputs);
    if (status)
        return status;
    if (batch < 1)
        return MODEL_BATCH;
    pthread_mutex_lock(&m->calls);
    m->inputs = inputs, m->outputs = outputs;
    run_batch(m, batch);
    pthread_mutex_unlock(&m->calls);
    return MODEL_OK;
}

int model_profile(model *m, const float *const *inputs, float *const *outputs, int repeats, double *nanoseconds)
{
    int status = check(m, inputs, outputs);
    if (status || !nanoseconds)
        return status ? status : MODEL_NULL;
    pthread_mutex_lock(&m->calls);
    m->inputs = inputs, m->outputs = outputs, m->profiling = 1;
    for (int i = 0; i < STEPS; i++)
        nanoseconds[i] = 1e18;
    for (int repeat = 0; repeat < repeats; repeat++) {
        double before = now();
        share(m, begin(m, 0, 0, 1));
        for (int i = 0; i < STEPS; before = m->ended[i++])
            nanoseconds[i] = m->ended[i] - before < nanoseconds[i] ? m->ended[i] - before : nanoseconds[i];
    }
    m->profiling = 0;
    pthread_mutex_unlock(&m->calls);
    return MODEL_OK;
}

int model_set_tiling(model *m, int layer, int kernel, int tile, int pixel_pieces, int channel_pieces)
{
    if (!m || layer < 0 || layer >= STEPS)
        return MODEL_NULL;
    pthread_mutex_lock(&m->calls);
    struct tiling tiling = {(int16_t)kernel, (int16_t)tile, (int16_t)pixel_pieces, (int16_t)channel_pieces};
    m->tiling[layer] = tiling;
    pthread_mutex_unlock(&m->calls);
    return MODEL_OK;
}

static int start(model *m, const int *cpus, int cpu_count)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the program's own threads */
    int status = MODEL_OK;
    for (int i = 1; i < m->threads && !status; i++) {
        struct worker *w = m->workers + i;
        w->model = m, w->index = i;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
#if defined(__linux__) && defined(__GLIBC__)
        if (cpus) {
            cpu_set_t set;
            CPU_ZERO(&set);
            for (int c = 0; c < cpu_count; c++)
                if (cpus[c] < 0 || cpus[c] >= CPU_SETSIZE)
                    status = MODEL_AFFINITY;
                else
                    CPU_SET(cpus[c], &set);
            if (!status && pthread_attr_setaffinity_np(&attributes, sizeof set, &set))
                status = MODEL_AFFINITY;
        }
#endif
        int failed = status ? 0 : pthread_create(&w->thread, &attributes, worker, w);
        pthread_attr_destroy(&attributes);
        if (failed)
            status = cpus ? MODEL_AFFINITY : MODEL_THREAD_START;
        else if (!status)
            m->started = i;
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
    return status;
}

int model_create(int threads, const int *cpus, int cpu_count, model **created)
{
    if (!created)
        return MODEL_NULL;
    *created = 0;
    if (threads < 1 || threads > MOST_THREADS)
        return MODEL_THREADS;
    int set = best_set();
    if (set < 0)
        return MODEL_PROCESSOR;
    model *m = calloc(1, sizeof *m);
    if (!m)
        return MODEL_MEMORY;
    m->threads = threads, m->set = set;
    pthread_mutex_init(&m->calls, 0);
    pthread_mutex_init(&m->lock, 0);
    pthread_cond_init(&m->changed, 0);
    size_t bytes = ((size_t)threads * ARENA + 2 * SLACK) * sizeof(float);
    void *memory = 0;
    int status = posix_memalign(&memory, 64, bytes) ? MODEL_MEMORY : MODEL_OK;
    m->memory = memory;
    m->segments = calloc(STEPS, sizeof *m->segments);
    m->tiling = calloc(STEPS, sizeof *m->tiling);
    m->next = calloc(STEPS, sizeof *m->next);
    m->done = calloc(STEPS, sizeof *m->done);
    m->ended = calloc(STEPS, sizeof *m->ended);
    m->workers = calloc((size_t)threads, sizeof *m->workers);
    if (status || !m->segments || !m->tiling || !m->next || !m->done || !m->ended || !m->workers) {
        model_destroy(m);
        return MODEL_MEMORY;
    }
    memset(memory, 0, bytes);
    for (int i = 0; i < STEPS; i++) {
        m->tiling[i] = steps[i].tiling[set];
        int product = steps[i].kind == PRODUCT || steps[i].kind == PRODUCT_U8;
        if (product && !make_segments(steps[i].parameters, *lanes[set], m->segments + i))
            status = MODEL_MEMORY;
    }
    for (int i = 0; i < threads; i++)
        fill(arena_of(m, i));
    if (!status)
        status = start(m, cpus, cpu_count);
    if (status) {
        model_destroy(m);
        return status;
    }
    *created = m;
    return MODEL_OK;
}

void model_destroy(model *m)
{
    if (!m)
        return;
    pthread_mutex_lock(&m->lock);
    atomic_store(&m->ending, 1);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    for (int i = 1; i <= m->started; i++)
        pthread_join(m->workers[i].thread, 0);
    if (m->segments)
        for (int i = 0; i < STEPS; i++)
            free(m->segments[i].list);
    free(m->segments);
    free(m->tiling);
    free(m->next);
    free(m->done);
    free(m->ended);
    free(m->workers);
    free(m->memory);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    pthread_mutex_destroy(&m->calls);
    free(m);
}
