/* Reads the folder `raw` of a golden bundle and checks a port, this one, against it layer by layer:
   every output within its bound, computed from the exact output of the layer before.
   cc -O1 raw_reader.c -lm && ./a.out FOLDER [WHAT-TO-BREAK] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int rank, n[4]; long size; double *v; } Array;

/* The rest of an index line, DTYPE RANK EXTENT... FILE, and the numbers in that file. */
static Array read_array(FILE *index, const char *folder) {
    char dtype[16], file[256], path[1024];
    Array a = {0, {1, 1, 1, 1}, 1, NULL};
    if (fscanf(index, "%15s %d", dtype, &a.rank) != 2) exit(2);
    for (int i = 0; i < a.rank; a.size *= a.n[i++]) if (fscanf(index, "%d", &a.n[i]) != 1) exit(2);
    if (fscanf(index, "%255s", file) != 1) exit(2);
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *data = fopen(path, "rb");
    int width = strcmp(dtype, "float64") ? 4 : 8;
    char *raw = malloc(a.size * width);
    if (!data || fread(raw, width, a.size, data) != (size_t)a.size || fgetc(data) != EOF) exit(2);
    a.v = malloc(a.size * sizeof *a.v);
    for (long i = 0; i < a.size; i++) a.v[i] = width == 8 ? ((double *)raw)[i] : ((float *)raw)[i];
    fclose(data), free(raw);
    return a;
}

/* One output of a convolution in float; g: KH KW SH SW PH PW DH DW GROUPS. */
static float conv(Array x, Array w, Array b, const int *g, int n, int o, int i, int j) {
    float sum = (float)b.v[o];
    int first = o / (w.n[0] / g[8]) * w.n[1];
    for (int c = 0; c < w.n[1]; c++) for (int r = 0; r < g[0]; r++) for (int s = 0; s < g[1]; s++) {
        int y = i * g[2] - g[4] + r * g[6], z = j * g[3] - g[5] + s * g[7];
        if (y < 0 || z < 0 || y >= x.n[2] || z >= x.n[3]) continue;
        sum += (float)w.v[((o * w.n[1] + c) * g[0] + r) * g[1] + s]
             * (float)x.v[((n * x.n[1] + first + c) * x.n[2] + y) * x.n[3] + z];
    }
    return sum;
}

static float logit(Array x, Array w, Array b, int n, int o) {
    float sum = (float)b.v[o];
    for (int c = 0; c < w.n[1]; c++) {
        float mean = 0;
        for (int p = 0; p < x.n[2] * x.n[3]; p++) mean += (float)x.v[(n * x.n[1] + c) * x.n[2] * x.n[3] + p];
        sum += (float)w.v[o * w.n[1] + c] * mean / (x.n[2] * x.n[3]);
    }
    return sum;
}

int main(int argc, char **argv) {
    char path[1024], word[16], name[128], kind[16], se[16];
    snprintf(path, sizeof path, "%s/index.txt", argv[1]);
    FILE *index = fopen(path, "r");
    Array x = {0}, y = {0}, weight[2];
    int g[9], relu = 0, weights = 0, wrong = 0, seen = 0, linear = 0;
    while (index && fscanf(index, "%15s %127s", word, name) == 2) {
        if (!strcmp(word, "layer")) {
            if (fscanf(index, "%15s", kind) != 1) return 2;
            linear = !strcmp(kind, "linear"), weights = 0;
            for (int i = 0; i < (linear ? 2 : 9); i++) if (fscanf(index, "%d", &g[i]) != 1) return 2;
            if (!linear && (fscanf(index, "%15s %d", se, &relu) != 2 || strcmp(se, "none"))) return 2;
            continue;
        }
        Array a = read_array(index, argv[1]);
        if (!strcmp(word, "weight") && weights < 2) weight[weights++] = a;
        if (!strcmp(word, "array")) x = y.v ? y : a, y = a;
        if (strcmp(word, "bound") || !strstr(name, "/fp32")) continue;
        if (argc > 2 && !strcmp(argv[2], "padding")) g[4] = 0;
        if (argc > 2 && !strcmp(argv[2], "tap")) weight[0].v[0] *= 1.01;
        for (long k = 0; k < y.size; k++) {
            int o = linear ? k % y.n[1] : k / (y.n[2] * y.n[3]) % y.n[1], n = k / (y.size / y.n[0]);
            float got = linear ? logit(x, weight[0], weight[1], n, o)
                : conv(x, weight[0], weight[1], g, n, o, k / y.n[3] % y.n[2], k % y.n[3]);
            if (!linear && relu && !(got > 0)) got = 0;
            wrong += !(fabs(got - y.v[k]) <= a.v[a.size == y.size ? k : o]), seen++;
        }
    }
    printf("%d of %d outputs are outside their bounds\n", wrong, seen);
    return wrong || !seen;
}
