/* A bad wire between two ends: what arrives at one leaves at the other, late, and some of it lost, doubled or swapped.
 *
 *     wire LOSS REORDER DUPLICATE DELAY SEED END END
 *
 * LOSS, REORDER and DUPLICATE are in frames of ten thousand, DELAY in microseconds one way.  END is one of
 *
 *     tap:NETNS:NAME   a new TAP device without offloads in the namespace that the path NETNS is
 *     qemu:PATH        connects to a unix stream socket; 32-bit big-endian lengths
 *
 * A frame that is to be swapped comes REORDER_DELAY later than it should.  Each direction has dice of its own, so that
 * the n-th IPv4 frame always has the same fate; other frames are only late.  It says `ready` on standard output, ends
 * when its standard input does, and then says what it did in each direction: `frames lost swapped doubled`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_FRAME = 65549,
    REORDER_DELAY = 500, /* microseconds: some frames at the rates that such a wire allows */
    MAX_WAITING = 20000, /* frames in one direction, the next are lost */
    BURST = 64,
};

struct end {
    int fd, stream;          /* stream: frames have lengths in front */
    size_t have;             /* octets of the stream in `buffer` */
    unsigned char buffer[4 * MAX_FRAME];
};

struct frame {
    struct frame *next;
    uint64_t due; /* nanoseconds */
    uint32_t length;
    unsigned char data[];
};

struct direction {
    struct end *to;
    uint64_t dice;
    struct frame *first, *last;
    unsigned waiting;
    unsigned long frames, lost, swapped, doubled;
};

static struct end ends[2];
static struct direction directions[2];
static unsigned loss, reorder, duplicate;
static uint64_t delay;

__attribute__((noreturn)) static void fail(const char *what)
{
    fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static int rolls(struct direction *direction, unsigned chance) /* xorshift64* */
{
    uint64_t x = direction->dice;
    x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
    direction->dice = x;
    return (x * 0x2545F4914F6CDD1Du >> 32) % 10000 < chance;
}

static void open_end(struct end *end, char *word)
{
    if (strncmp(word, "tap:", 4) == 0) {
        char *name = strrchr(word, ':');
        struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
        *name++ = 0;
        int before = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), inside = open(word + 4, O_RDONLY | O_CLOEXEC);
        if (before < 0 || inside < 0 || setns(inside, CLONE_NEWNET) < 0)
            fail(word);
        end->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
        snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
        if (end->fd < 0 || ioctl(end->fd, TUNSETIFF, &request) < 0 || setns(before, CLONE_NEWNET) < 0)
            fail(name);
        close(before);
        close(inside);
    } else if (strncmp(word, "qemu:", 5) == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int size = 8 << 20;
        snprintf(address.sun_path, sizeof address.sun_path, "%s", word + 5);
        end->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        end->stream = 1;
        setsockopt(end->fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
        if (end->fd < 0 || connect(end->fd, (struct sockaddr *)&address, sizeof address) < 0)
            fail(word);
    } else {
        errno = EINVAL;
        fail(word);
    }
    fcntl(end->fd, F_SETFL, O_NONBLOCK);
}

static void put(struct end *end, const struct frame *frame)
{
    uint32_t prefix = htonl(frame->length);
    struct iovec parts[2] = {{&prefix, sizeof prefix}, {(void *)frame->data, frame->length}};
    size_t left = sizeof prefix + frame->length;
    if (!end->stream) { /* what the device does not take is lost, as is what comes before it is up */
        if (write(end->fd, frame->data, frame->length) < 0 && errno != EAGAIN && errno != EIO)
            fail("the device");
        return;
    }
    while (left) {
        ssize_t done = writev(end->fd, parts, 2);
        if (done < 0) {
            struct pollfd writable = {end->fd, POLLOUT, 0};
            if (errno == EPIPE || errno == ECONNRESET)
                exit(0);
            if (errno != EAGAIN && errno != EINTR)
                fail("the stream");
            poll(&writable, 1, -1);
            continue;
        }
        left -= (size_t)done;
        for (int i = 0; i < 2; i++) {
            size_t part = (size_t)done < parts[i].iov_len ? (size_t)done : parts[i].iov_len;
            parts[i].iov_base = (char *)parts[i].iov_base + part;
            parts[i].iov_len -= part;
            done -= (ssize_t)part;
        }
    }
}

/* In the order of `due`; frames of the same time in the order in which they came. */
static void wait_for(struct direction *direction, const unsigned char *data, uint32_t length, uint64_t due)
{
    struct frame *frame = malloc(sizeof *frame + length), **place = &direction->first;
    if (!frame)
        fail("malloc");
    frame->due = due;
    frame->length = length;
    memcpy(frame->data, data, length);
    direction->waiting++;
    if (direction->last && direction->last->due <= due)
        place = &direction->last->next;
    else
        while (*place && (*place)->due <= due)
            place = &(*place)->next;
    frame->next = *place;
    *place = frame;
    if (!frame->next)
        direction->last = frame;
}

static void take(struct direction *direction, const unsigned char *data, uint32_t length)
{
    uint64_t due = now() + delay;
    if (length < 14 || data[12] != 8 || data[13] != 0) {
        wait_for(direction, data, length, due);
        return;
    }
    int is_lost = rolls(direction, loss), is_swapped = rolls(direction, reorder), is_doubled = rolls(direction, duplicate);
    direction->frames++;
    if (is_lost || direction->waiting >= MAX_WAITING) {
        direction->lost++;
        return;
    }
    if (is_swapped) {
        direction->swapped++;
        due += REORDER_DELAY * 1000;
    }
    wait_for(direction, data, length, due);
    if (is_doubled) {
        direction->doubled++;
        wait_for(direction, data, length, due);
    }
}

static void read_stream(struct end *end, struct direction *direction)
{
    ssize_t done = read(end->fd, end->buffer + end->have, sizeof end->buffer - end->have);
    if (done == 0)
        exit(0);
    if (done < 0)
        return;
    end->have += (size_t)done;
    size_t at = 0;
    while (end->have - at >= 4) {
        uint32_t length;
        memcpy(&length, end->buffer + at, 4);
        length = ntohl(length);
        if (length > MAX_FRAME) {
            errno = EPROTO;
            fail("the stream");
        }
        if (end->have - at < 4 + length)
            break;
        take(direction, end->buffer + at + 4, length);
        at += 4 + length;
    }
    memmove(end->buffer, end->buffer + at, end->have -= at);
}

static void read_device(struct end *end, struct direction *direction)
{
    for (int i = 0; i < BURST; i++) {
        ssize_t length = read(end->fd, end->buffer, MAX_FRAME);
        if (length <= 0)
            return;
        take(direction, end->buffer, (uint32_t)length);
    }
}

static void deliver(struct direction *direction, uint64_t until)
{
    struct frame *frame;
    while ((frame = direction->first) && frame->due <= until) {
        put(direction->to, frame);
        if (!(direction->first = frame->next))
            direction->last = NULL;
        direction->waiting--;
        free(frame);
    }
}

int main(int count, char **words)
{
    if (count != 8)
        return fputs("usage: wire LOSS REORDER DUPLICATE DELAY SEED END END\n", stderr), 2;
    loss = (unsigned)atoi(words[1]);
    reorder = (unsigned)atoi(words[2]);
    duplicate = (unsigned)atoi(words[3]);
    delay = (uint64_t)atoi(words[4]) * 1000;
    for (int i = 0; i < 2; i++) {
        open_end(&ends[i], words[6 + i]);
        directions[i].to = &ends[1 - i];
        directions[i].dice = 0x9E3779B97F4A7C15u * (uint64_t)(2 * atoi(words[5]) + i + 1);
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd fds[3] = {{ends[0].fd, POLLIN, 0}, {ends[1].fd, POLLIN, 0}, {0, POLLIN, 0}};
        uint64_t at = now(), due = UINT64_MAX;
        for (int i = 0; i < 2; i++)
            if (directions[i].first && directions[i].first->due < due)
                due = directions[i].first->due;
        uint64_t left = due <= at ? 0 : due - at;
        struct timespec timeout = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
        if (ppoll(fds, 3, due == UINT64_MAX ? NULL : &timeout, NULL) < 0 && errno != EINTR)
            fail("ppoll");
        for (int i = 0; i < 2; i++)
            if (fds[i].revents & (POLLIN | POLLHUP))
                (ends[i].stream ? read_stream : read_device)(&ends[i], &directions[i]);
        at = now();
        for (int i = 0; i < 2; i++)
            deliver(&directions[i], at);
        if (fds[2].revents)
            break;
    }
    for (int i = 0; i < 2; i++)
        printf("%lu %lu %lu %lu\n", directions[i].frames, directions[i].lost, directions[i].swapped,
               directions[i].doubled);
    return 0;
}
