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

enum { LOOKS = 2000, MOST_THREADS = 1024, MOST_PIECES = 4096 };

struct worker {
    struct model *model;
    int index;
    pthread_t thread;
};

/* What a run is about. Each worker has a copy: one that the system held up still has that of a run that is over. */
struct job {
    unsigned run;
    int by_sample, first_sample, sample_count;
    const float *const *inputs;
    float *const *outputs;
};

struct model {
    int threads, set, started;
    struct job job;                 /* the current one */
    float *memory;                  /* an arena for each thread */
    struct segments *segments;      /* of all steps */
    struct tiling *tiling;
    atomic_uint_least64_t *next;    /* of each step: the run in the upper half, the next piece in the lower */
    atomic_uint_least64_t *done;    /* of each step: the run, and how many pieces are done */
    atomic_uint_least64_t sample;   /* where samples go to threads: the run, and the next sample */
    atomic_uint_least64_t samples_done;
    atomic_uint run;                /* counts runs */
    atomic_int waiting, ending;
    pthread_mutex_t calls, lock;
    pthread_cond_t changed;
    struct worker *workers;
    _Atomic double *ended;          /* of each step, while profiling: when its last piece was done, in nanoseconds */
    int profiling;
};

static run_piece *const runners[SETS] = {RUNNERS};
static const int *const lanes[SETS] = {LANES_OF_SETS};
static has_tile *const tile_exists[SETS] = {TILES_OF_SETS};

/* Asked for directly: what compilers offer for it depends on their own libraries, and ziglang's always says no. */
static int supported(int set)
{
    enum { FMA = 1u << 12, OSXSAVE = 1u << 27, AVX2 = 1u << 5, AVX_VNNI = 1u << 4, AVX512_VNNI = 1u << 11 };
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW and VL */
    unsigned a, b, c, d, seven_b, seven_c, seven_a = 0, state, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE) || !(c & FMA))
        return 0;
    if (!__get_cpuid_count(7, 0, &a, &seven_b, &seven_c, &d))
        return 0;
    if (a >= 1)
        __get_cpuid_count(7, 1, &seven_a, &b, &c, &d);
    __asm__("xgetbv" : "=a"(state), "=d"(high) : "c"(0)); /* registers that the system saves */
    int has_avx2 = (state & 0x06) == 0x06 && (seven_b & AVX2);
    int has_avx512 = (state & 0xe6) == 0xe6 && (seven_b & avx512) == avx512;
    switch (set) {
    case 0: return has_avx512 && (seven_c & AVX512_VNNI);
    case 1: return has_avx512;
    case 2: return has_avx2 && (seven_a & AVX_VNNI);
    case 3: return has_avx2;
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
        "this layer can't be cut so",
    };
    return status < 0 || status > MODEL_TILING ? "unknown status" : texts[status];
}

/* Where the lanes of each vector of a product's pixels are in a tensor with rows `pitch` apart. Pixels of an output row
   are side by side, but rows may have another distance than in the input.
   Returns the most segments that a vector has, or 0 without memory. */
static int cut(const struct product *p, int width, int vectors, int pitch, struct copies copies, struct segment **list)
{
    int each = 0;
    for (int fill = 0; fill < 2; fill++) {
        for (int v = 0; v < vectors; v++) {
            int used = 0;
            for (int copy = 0; copy < copies.count; copy++) {
                int shift = copies.first + copy * copies.step, start = shift / copies.step * copies.distance, last = 0;
                int before = used;
                for (int lane = 0; lane < width; lane++) {
                    int pixel = v * width + lane, y = pixel / p->in.pitch, x = pixel % p->in.pitch;
                    if (x >= p->width || y >= p->height || x - shift < 0 || x - shift >= p->width)
                        continue;
                    int at = start + y * pitch + x - shift - lane;
                    if (used == before || at != last)
                        used++;
                    last = at;
                    if (fill) {
                        (*list)[(long)v * each + used - 1].mask |= 1u << lane;
                        (*list)[(long)v * each + used - 1].at = at;
                    }
                }
            }
            if (!fill && used > each)
                each = used;
        }
        if (!fill && !(*list = calloc((size_t)vectors * (each ? each : 1), sizeof **list)))
            return 0;
    }
    return each;
}

static int make_segments(const struct product *p, int width, struct segments *s)
{
    int span = (p->height - 1) * p->in.pitch + p->width;
    s->vectors = (span + width - 1) / width;
    if (!p->contiguous && !(s->each = cut(p, width, s->vectors, p->out.pitch, p->copies, &s->list)))
        return 0;
    if (p->residual_multiplier == 0 || p->residual_contiguous)
        return 1;
    struct copies single = {1, 0, 1, 0};
    s->each_residual = cut(p, width, s->vectors, p->residual.pitch, single, &s->residual);
    return s->each_residual > 0;
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

enum { NONE_LEFT = 0x7fffffff }; /* more than there are pieces: what a run doesn't use has none to take */

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
static void share(struct model *m, const struct job *job)
{
    unsigned run = job->run;
    struct frame frame = {arena_of(m, 0), job->inputs, job->outputs, job->first_sample, m->segments};
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
static void take_samples(struct model *m, const struct job *job, int thread)
{
    int sample;
    while ((sample = take(&m->sample, job->run, (unsigned)job->sample_count)) >= 0) {
        struct frame frame = {arena_of(m, thread), job->inputs, job->outputs, job->first_sample + sample, m->segments};
        for (int i = 0; i < STEPS; i++)
            for (int piece = 0, count = pieces_of(m, i); piece < count; piece++)
                runners[m->set](steps + i, m->tiling + i, m->segments + i, &frame, piece, count);
        finish(m, &m->samples_done, (unsigned)job->sample_count, 0);
    }
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
        struct job job = m->job;
        seen = job.run;
        pthread_mutex_unlock(&m->lock);
        if (atomic_load(&m->ending))
            return 0;
        if (job.by_sample)
            take_samples(m, &job, w->index);
        else
            share(m, &job);
    }
}

/* Begin a run: set all counters to it, then wake the workers. Nothing is left to take for who comes late from the run
   before. */
static struct job begin(struct model *m, int by_sample, int first, int count, const float *const *inputs,
                        float *const *outputs)
{
    pthread_mutex_lock(&m->lock);
    struct job job = {atomic_load(&m->run) + 1, by_sample, first, count, inputs, outputs};
    m->job = job;
    for (int i = 0; i < STEPS; i++) {
        atomic_store(m->done + i, tagged(job.run, 0));
        atomic_store(m->next + i, tagged(job.run, by_sample ? NONE_LEFT : 0));
    }
    atomic_store(&m->samples_done, tagged(job.run, 0));
    atomic_store(&m->sample, tagged(job.run, by_sample ? 0 : NONE_LEFT));
    atomic_store(&m->run, job.run);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    return job;
}

static void run_batch(struct model *m, int batch, const float *const *inputs, float *const *outputs)
{
    int whole = m->threads > 1 ? batch / m->threads * m->threads : batch;
    if (whole) {
        struct job job = begin(m, 1, 0, whole, inputs, outputs);
        take_samples(m, &job, 0);
        await(m, &m->samples_done, job.run, (unsigned)whole);
    }
    for (int sample = whole; sample < batch; sample++) {
        struct job job = begin(m, 0, sample, 1, inputs, outputs);
        share(m, &job);
    }
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
    run_batch(m, batch, inputs, outputs);
    pthread_mutex_unlock(&m->calls);
    return MODEL_OK;
}

int model_profile(model *m, const float *const *inputs, float *const *outputs, int repeats, double *nanoseconds)
{
    int status = check(m, inputs, outputs);
    if (status || !nanoseconds)
        return status ? status : MODEL_NULL;
    pthread_mutex_lock(&m->calls);
    m->profiling = 1;
    for (int i = 0; i < STEPS; i++)
        nanoseconds[i] = 1e18;
    for (int repeat = 0; repeat < repeats; repeat++) {
        double before = now();
        struct job job = begin(m, 0, 0, 1, inputs, outputs);
        share(m, &job);
        for (int i = 0; i < STEPS; before = m->ended[i++])
            nanoseconds[i] = m->ended[i] - before < nanoseconds[i] ? m->ended[i] - before : nanoseconds[i];
    }
    m->profiling = 0;
    pthread_mutex_unlock(&m->calls);
    return MODEL_OK;
}

int model_set_tiling(model *m, int layer, int kernel, int tile, int pixel_pieces, int channel_pieces)
{
    if (!m)
        return MODEL_NULL;
    if (layer < 0 || layer >= STEPS || kernel != steps[layer].tiling[m->set].kernel || pixel_pieces < 1 ||
        pixel_pieces > MOST_PIECES || channel_pieces < 1 || channel_pieces > MOST_PIECES)
        return MODEL_TILING;
    int bytes = steps[layer].kind == PRODUCT_U8;
    if ((!bytes && steps[layer].kind != PRODUCT) || !tile_exists[m->set](bytes, kernel, tile))
        return MODEL_TILING;
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
        for (int i = 0; i < STEPS; i++) {
            free(m->segments[i].list);
            free(m->segments[i].residual);
        }
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
