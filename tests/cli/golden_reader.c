/* A port of RepVGG in C, written from the page `formats` and nothing else.
 *
 *   golden_reader check BUNDLE WEIGHTS.npz      every layer on the exact output of the one before
 *   golden_reader run WEIGHTS.npz IN.npy OUT    as verify's exec: wants it: raw numbers, a manifest
 *
 * check prints "LAYER RATIO", the largest error over its bound; exit code 1 if one is outside. It
 * needs bounds by element, a float64 bundle, and float32 weights, on a little-endian machine.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct {
    char name[128], descr[8];
    int axes;
    long shape[8], elements;
    const unsigned char *data;
} Array;

typedef struct {
    int count;
    Array *arrays;
} Archive;

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "golden_reader: %s\n", what);
        exit(2);
    }
}

static uint32_t u16(const unsigned char *at) { return at[0] | at[1] << 8; }
static uint32_t u32(const unsigned char *at) { return u16(at) | u16(at + 2) << 16; }

static unsigned char *read_file(const char *path, long *size) {
    FILE *file = fopen(path, "rb");
    require(file != NULL, path);
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*size + 1);
    require(bytes && fread(bytes, 1, *size, file) == (size_t)*size, path);
    fclose(file);
    bytes[*size] = 0;
    return bytes;
}

static void parse_npy(const unsigned char *npy, Array *array) {
    require(!memcmp(npy, "\x93NUMPY\x01", 7), "no npy file");
    char header[1024];
    uint32_t length = u16(npy + 8);
    require(length < sizeof header, "a long npy header");
    memcpy(header, npy + 10, length);
    header[length] = 0;
    require(sscanf(header, "{'descr': '%7[^']'", array->descr) == 1, "no descr");
    require(strstr(header, "'fortran_order': False") != NULL, "Fortran order");
    char *at = strstr(header, "'shape': (");
    require(at != NULL, "no shape");
    at += strlen("'shape': (");
    array->axes = 0;
    array->elements = 1;
    while (*at != ')') {
        require(array->axes < 8, "too many axes");
        array->shape[array->axes] = strtol(at, &at, 10);
        array->elements *= array->shape[array->axes++];
        while (*at == ',' || *at == ' ') at++;
    }
    array->data = npy + 10 + length;
}

static Archive read_npz(const char *path) {
    long size;
    unsigned char *zip = read_file(path, &size);
    require(size >= 22 && !memcmp(zip + size - 22, "PK\5\6", 4), "no zip end record");
    Archive archive = {(int)u16(zip + size - 22 + 10), NULL};
    archive.arrays = calloc(archive.count, sizeof(Array));
    const unsigned char *entry = zip + u32(zip + size - 22 + 16);
    for (int i = 0; i < archive.count; i++) {
        require(!memcmp(entry, "PK\1\2", 4) && u16(entry + 10) == 0, "no stored member");
        uint32_t length = u16(entry + 28);
        Array *array = &archive.arrays[i];
        require(length > 4 && length < sizeof array->name, "a long name");
        memcpy(array->name, entry + 46, length - 4); /* without .npy */
        const unsigned char *member = zip + u32(entry + 42);
        require(!memcmp(member, "PK\3\4", 4), "no member");
        parse_npy(member + 30 + u16(member + 26) + u16(member + 28), array);
        entry += 46 + length + u16(entry + 30) + u16(entry + 32);
    }
    return archive;
}

static const Array *find(const Archive *archive, const char *layer, const char *ending) {
    char name[160];
    snprintf(name, sizeof name, "%s%s", layer, ending);
    for (int i = 0; i < archive->count; i++)
        if (!strcmp(archive->arrays[i].name, name)) return &archive->arrays[i];
    fprintf(stderr, "golden_reader: no array %s\n", name);
    exit(2);
}

static float number(const Array *array, long i) {
    if (!strcmp(array->descr, "<f4")) return ((const float *)array->data)[i];
    require(!strcmp(array->descr, "<f8"), "a dtype beside <f4 and <f8");
    return (float)((const double *)array->data)[i];
}

typedef struct {
    long n, c, h, w;
    float *at;
} Batch;

static Batch batch_of(const Array *array) {
    require(array->axes == 4, "an image batch has four axes");
    Batch x = {array->shape[0], array->shape[1], array->shape[2], array->shape[3],
               malloc(array->elements * sizeof(float))};
    for (long i = 0; i < array->elements; i++) x.at[i] = number(array, i);
    return x;
}

/* relu(conv(x, weight, stride, padding 1, groups) + bias), groups and widths from the shapes. */
static Batch block(Batch x, const Array *weight, const Array *bias, long stride) {
    long per_group = weight->shape[1], outputs = weight->shape[0];
    long in_group = outputs / (x.c / per_group);
    Batch y = {x.n, outputs, (x.h + stride - 1) / stride, (x.w + stride - 1) / stride, NULL};
    float *to = y.at = malloc(y.n * y.c * y.h * y.w * sizeof(float));
    for (long n = 0; n < y.n; n++)
        for (long o = 0; o < y.c; o++)
            for (long i = 0; i < y.h; i++)
                for (long j = 0; j < y.w; j++, to++) {
                    float sum = number(bias, o);
                    for (long c = 0; c < per_group; c++)
                        for (long u = 0; u < 3; u++)
                            for (long v = 0; v < 3; v++) {
                                long row = i * stride + u - 1, column = j * stride + v - 1;
                                if (row < 0 || row >= x.h || column < 0 || column >= x.w) continue;
                                long channel = o / in_group * per_group + c;
                                sum += number(weight, ((o * per_group + c) * 3 + u) * 3 + v) *
                                       x.at[((n * x.c + channel) * x.h + row) * x.w + column];
                            }
                    *to = sum < 0 ? 0 : sum; /* lets NaN through, as ReLU does */
                }
    return y;
}

static Batch classifier(Batch x, const Array *weight, const Array *bias) {
    Batch y = {x.n, weight->shape[0], 1, 1, NULL};
    float *to = y.at = malloc(y.n * y.c * sizeof(float)), *mean = malloc(x.c * sizeof(float));
    for (long n = 0; n < x.n; n++) {
        for (long c = 0; c < x.c; c++) {
            float sum = 0;
            for (long p = 0; p < x.h * x.w; p++) sum += x.at[(n * x.c + c) * x.h * x.w + p];
            mean[c] = sum / (float)(x.h * x.w);
        }
        for (long o = 0; o < y.c; o++) {
            float sum = number(bias, o);
            for (long c = 0; c < x.c; c++) sum += number(weight, o * x.c + c) * mean[c];
            *to++ = sum;
        }
    }
    return y;
}

/* The layers in network order: calls `each` with the name, and the weights of a block. */
static int next_layer(const Archive *weights, int *at, char *layer) {
    static const char kernel[] = ".rbr_reparam.weight";
    for (; *at < weights->count; ++*at) {
        const char *name = weights->arrays[*at].name, *end = strstr(name, kernel);
        if (end || !strcmp(name, "linear.weight")) {
            snprintf(layer, 128, "%.*s", end ? (int)(end - name) : 6, name);
            ++*at;
            return 1;
        }
    }
    return 0;
}

static Batch run_layer(const Archive *weights, const char *layer, Batch x, long stride) {
    if (!strcmp(layer, "linear"))
        return classifier(x, find(weights, "linear.weight", ""), find(weights, "linear.bias", ""));
    return block(x, find(weights, layer, ".rbr_reparam.weight"),
                 find(weights, layer, ".rbr_reparam.bias"), stride);
}

static int check(const char *bundle, const char *weights_path) {
    char path[1024];
    snprintf(path, sizeof path, "%s/outputs.npz", bundle);
    Archive outputs = read_npz(path), weights = read_npz(weights_path);
    snprintf(path, sizeof path, "%s/bounds.npz", bundle);
    Archive bounds = read_npz(path);
    const Array *below = find(&outputs, "input", "");
    int outside = 0, at = 0;
    for (char layer[128]; next_layer(&weights, &at, layer);) {
        const Array *right = find(&outputs, layer, ""), *bound = find(&bounds, layer, "/fp32");
        require(bound->elements == right->elements, "bounds by channel");
        Batch x = batch_of(below);
        long stride = right->axes == 4 && right->shape[2] < below->shape[2] ? 2 : 1;
        Batch y = run_layer(&weights, layer, x, stride);
        double worst = 0;
        for (long i = 0; i < right->elements; i++) {
            double error = fabs(y.at[i] - ((const double *)right->data)[i]);
            double allowed = number(bound, i);
            if (!(error <= allowed)) outside = 1;
            if (!isnan(worst) && !(error <= worst * allowed)) worst = error / allowed;
        }
        printf("%s %.3g\n", layer, worst);
        below = right;
    }
    return outside;
}

static int run(const char *weights_path, const char *input, const char *folder) {
    Archive weights = read_npz(weights_path);
    long size;
    Array array;
    parse_npy(read_file(input, &size), &array);
    Batch x = batch_of(&array);
    char path[1024], layer[128];
    mkdir(folder, 0777);
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    FILE *manifest = fopen(path, "w");
    require(manifest != NULL, path);
    fprintf(manifest, "{\"layout\": \"NCHW\", \"dtype\": \"float32\", \"arrays\": {");
    for (int at = 0, done = 0; next_layer(&weights, &at, layer); done++) {
        const char *index = strchr(layer, '.');
        long stride = !index || !strcmp(index, ".0") ? 2 : 1;
        x = run_layer(&weights, layer, x, stride);
        fprintf(manifest, "%s\"%s\": {\"file\": \"%s.bin\", \"shape\": [%ld, %ld", done ? ", " : "",
                layer, layer, x.n, x.c);
        if (strcmp(layer, "linear")) fprintf(manifest, ", %ld, %ld", x.h, x.w);
        fprintf(manifest, "]}");
        snprintf(path, sizeof path, "%s/%s.bin", folder, layer);
        FILE *file = fopen(path, "wb");
        require(file != NULL, path);
        fwrite(x.at, sizeof(float), x.n * x.c * x.h * x.w, file);
        fclose(file);
    }
    fprintf(manifest, "}}\n");
    fclose(manifest);
    return 0;
}

int main(int count, char **words) {
    if (count == 4 && !strcmp(words[1], "check")) return check(words[2], words[3]);
    if (count == 5 && !strcmp(words[1], "run")) return run(words[2], words[3], words[4]);
    fprintf(stderr, "usage: golden_reader check BUNDLE WEIGHTS | run WEIGHTS INPUT OUTPUT\n");
    return 2;
}
