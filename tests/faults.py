"""What may go wrong, by number, and the one right answer to it: the rows of docs/reliability.md.

Tests hold a server's answers against these rows (`tests.reliability.answers`) and claim them with a `fault` mark.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """status: of HTTP. code: in the error object, None for no error. should_retry: what x-should-retry says if sent."""

    status: int
    code: str | None = None
    should_retry: bool | None = None


@dataclass(frozen=True)
class Fault:
    """what: the fault. right: what happens, where answers and exit codes alone do not tell.

    answers: the right ones, of which each case of the fault gets one. exit_codes: of the server, where it has to end.
    """

    what: str
    right: str = ""
    answers: tuple[Answer, ...] = ()
    exit_codes: tuple[int, ...] = ()


def refused(*codes: str) -> tuple[Answer, ...]:
    """The client's mistake: a retry is the client's business."""
    return tuple(Answer(400, code) for code in codes)


OK = Answer(200)
CRASHED = Answer(500, "worker_crashed", False)
LOADING, ENDING = Answer(503, "model_loading"), Answer(503, "shutting_down")
LOST = Answer(503, "replica_lost")
FULL, TOO_LONG_A_WAIT = Answer(429, "queue_full"), Answer(429, "wait_exceeds_timeout", False)
UNAVAILABLE = Answer(503, "worker_unavailable", False)
TOO_LARGE = Answer(413, "request_too_large")
NOT_FOUND = Answer(404, "image_not_found")
STORAGE_FULL = Answer(503, "storage_full", False)

FAULTS: dict[int, Fault] = {
    1: Fault("a body that is no JSON, cut, or no UTF-8", answers=refused("invalid_json")),
    2: Fault("a body nested 100,000 deep", answers=refused("invalid_json")),
    3: Fault("an integer of 5,000 digits", answers=refused("invalid_value")),
    4: Fault("NaN, Infinity, 1e999", answers=refused("invalid_value")),
    5: Fault(
        "an array for a body, null for the prompt, a boolean for n", answers=refused("invalid_json", "invalid_type")
    ),
    6: Fault("a body over the cap: sent, declared, or endless", "not read; closed", (TOO_LARGE,)),
    7: Fault("a form's content type, as another page could send it", answers=(Answer(415, "unsupported_media_type"),)),
    8: Fault(
        "a prompt that is missing, empty or blank", answers=refused("missing_required_parameter", "invalid_value")
    ),
    9: Fault(
        "a prompt over 32,000 characters, or over the model's tokens",
        "cut with a warning if only the model's limit is passed",
        (*refused("string_above_max_length"), OK),
    ),
    10: Fault("NUL, a lone surrogate, other controls", "other controls are dropped", (*refused("invalid_value"), OK)),
    11: Fault("emoji, right-to-left, zero width, any script", "the same seed gives the same bytes", (OK,)),
    12: Fault('n of 0, 11, -1, 1.5, "2", true', answers=refused("invalid_value", "invalid_type")),
    13: Fault("sizes off the grid, zero, negative, huge, in other digits", answers=refused("invalid_size")),
    14: Fault(
        "more work than --max-work, also by true CFG alone", "the message names the cap", refused("invalid_value")
    ),
    15: Fault("guidance, steps or seed out of range", answers=refused("invalid_value")),
    16: Fault("a model that is not served", answers=(Answer(404, "model_not_found"),)),
    17: Fault(
        "fields of other models, or of none", "a warning; refused under --strict", (OK, *refused("unknown_parameter"))
    ),
    18: Fault("an unknown path, or method", answers=(Answer(404, "not_found"), Answer(405, "method_not_allowed"))),
    19: Fault("no key, a wrong, non-ASCII or doubled one", answers=(Answer(401, "invalid_api_key"),)),
    20: Fault(
        "a forged Host, a foreign or null Origin, a cross-site fetch",
        answers=(Answer(403, "host_not_allowed"), Answer(403, "origin_not_allowed")),
    ),
    21: Fault("forged X-Forwarded-*", "ignored, unless a trusted proxy sends them", (OK,)),
    22: Fault(
        "two lengths, length and chunks, bad chunks, broken heads, NUL, two Hosts, 100 KB of head",
        "one answer, closed",
        refused("invalid_value"),
    ),
    23: Fault("half a head, half a body, silence", "closed after 10, 30 and 10 s"),
    24: Fault(
        "more idle connections than --max-connections",
        "the slowest to send or to read is closed; health answers; 429 if all wait for the server",
        (OK, FULL),
    ),
    25: Fault("a client that does not read", "closed after 60 s and what its answer's size allows"),
    26: Fault("a client that leaves the queue", "no step is run"),
    27: Fault("a client that leaves while its picture is drawn", "stops within a step"),
    28: Fault("a full queue", "at once, Retry-After of 1 to 60", (FULL,)),
    29: Fault("a wait beyond the client's timeout", "at once", (TOO_LONG_A_WAIT,)),
    30: Fault("a job that passes its deadline", "stops at its next step", (Answer(504, "deadline_exceeded", False),)),
    31: Fault(
        "a burst of one key", "x-ratelimit-* headers; others are served", (Answer(429, "rate_limit_exceeded"), OK)
    ),
    32: Fault(
        "an Idempotency-Key used again: during, after, for another body",
        "joined, replayed, refused",
        (OK, Answer(422, "idempotency_key_reused")),
    ),
    33: Fault(
        "the worker dies in a job: SIGKILL, exit, segfault",
        "run once more, alone; final at the second death; neighbours are served",
        (OK, CRASHED),
    ),
    34: Fault("the worker hangs; or is slow, but beats", "hung: ended, and as 33; slow: left alone", (OK,)),
    35: Fault("a crash loop", "pauses that double, then the end; waiting requests are answered", (UNAVAILABLE,), (70,)),
    36: Fault(
        "the device is out of memory", "the next smaller job passes", (Answer(503, "insufficient_memory", False),)
    ),
    37: Fault("the device's context breaks", "the worker is replaced, as 33", (OK, CRASHED)),
    38: Fault("the kernel's OOM killer", "takes the worker before the front, as 33", (OK, CRASHED)),
    39: Fault(
        "NaN or infinity in the picture",
        "decoded once more in float32, else final",
        (Answer(500, "non_finite_output", False),),
    ),
    40: Fault("heavy encoding", "the front's loop does not notice"),
    41: Fault("a full disk, a full quota", "b64_json is served; no partial file", (OK, STORAGE_FULL)),
    42: Fault("a picture folder that cannot be written", "refused at start; later as 41", (STORAGE_FULL,), (78,)),
    43: Fault("a URL that has expired, or never was", answers=(Answer(410, "image_expired"), NOT_FOUND)),
    44: Fault("paths out of the folder, in any spelling; symlinks", answers=(NOT_FOUND,)),
    45: Fault("a picture taken for HTML", "fixed type, nosniff, sandbox", (OK,)),
    46: Fault("10,000 ranges", "the whole picture, once", (OK,)),
    47: Fault("the wall clock jumps", "no deadline and no URL's life moves"),
    48: Fault("a weight file that is cut, junk, or has a wrong header", "named; never ready", exit_codes=(65,)),
    49: Fault(
        "a missing shard, half a snapshot, a flipped bit in a header or in a file whose SHA-256 is known",
        "named; nothing is deleted",
        exit_codes=(65,),
    ),
    50: Fault(
        "a tensor missing, stray, of another shape or dtype", "named, with the first five differences", exit_codes=(65,)
    ),
    51: Fault("a pickle, under any name", "refused unread", exit_codes=(65,)),
    52: Fault("SIGTERM", "accepted requests are answered, late ones refused; no process is left", (OK, ENDING), (0,)),
    53: Fault("a second signal", "the end at once, the worker reaped", exit_codes=(130, 143)),
    54: Fault(
        "SIGKILL of the front", "the worker is gone within a second; temporary files are swept at the next start"
    ),
    55: Fault("a second server on the same port or --output-dir", "nothing is loaded", exit_codes=(1,)),
    56: Fault(
        "uploads that are empty, cut, bombs, SVG, or odd but legal",
        "odd but legal ones are converted",
        (*refused("invalid_image"), OK),
    ),
    57: Fault(
        "forms that are malformed, or beyond 64 fields or 16 files", answers=(*refused("invalid_multipart"), TOO_LARGE)
    ),
    58: Fault("prompts and keys on their way to logs, figures and errors", "absent; what is logged is escaped"),
    59: Fault(
        "an --output-dir with a person's own files, whatever their names",
        "untouched and not served: the server has a folder of its own inside, and touches what it provably wrote",
        (NOT_FOUND,),
    ),
    60: Fault(
        "files, a link or another user's folder in the place of the server's own",
        "refused, naming the folder",
        exit_codes=(78,),
    ),
    61: Fault(
        "a stored answer or picture that was removed, emptied, cut or altered",
        "never served: a keyed request is drawn once more, a URL is not found; the log tells",
        (OK, NOT_FOUND),
    ),
    62: Fault("the server's folder is removed while it runs", "made again; a key still runs once", (OK,)),
    63: Fault(
        "a full disk as an answer is kept", "the answer is given; no partial file; /readyz tells, till a write succeeds"
    ),
    64: Fault(
        "a restart between a keyed request and its copy", "replayed for a day, or as long as its URLs live", (OK,)
    ),
    65: Fault(
        "--max-pixels or a memory budget below the model's own size, or an input picture's",
        "the default obeys, and the size that a refusal advises is drawn",
        (OK, *refused("invalid_size")),
    ),
    66: Fault(
        "a fluxserve.toml in the working folder, found and not named, that runs code or opens the network",
        "refused, naming the setting; served if named with --config",
        exit_codes=(78,),
    ),
    67: Fault("a settings file that group, world or another user can write", "refused", exit_codes=(78,)),
    68: Fault("SIGHUP under nohup", "the server goes on; without nohup it ends as by SIGTERM"),
    69: Fault(
        "a key file with comments, blank lines and a byte order mark; one without a key",
        "no comment is a key; refused where there is none",
        (Answer(401, "invalid_api_key"), OK),
        (78,),
    ),
    90: Fault("an --output-dir that others may read", "pictures are 0600 in a folder that is 0700"),
    91: Fault(
        "any Host beyond loopback",
        "served; once --allowed-host or --public-url names some, others are refused, but for health",
        (OK, Answer(403, "host_not_allowed")),
    ),
    92: Fault(
        "a range of HEAD, of another picture by If-Range, or that ends before it begins",
        "the whole; a part otherwise",
        (OK, Answer(206)),
    ),
    93: Fault("an offer to upgrade: h2c, websocket, TLS", "answered as HTTP/1.1; nothing is logged of it", (OK,)),
    94: Fault("two servers with default settings, but for the port", "both start, each with a folder of its own"),
    70: Fault(
        "a JSON body of very many keys, values or levels",
        "time grows with the bytes; at most 1,000 keys an object and 10,000 values; beside the loop",
        refused("invalid_json"),
    ),
    71: Fault("a form of very many parts, headers or almost boundaries", "time grows with the bytes"),
    72: Fault("a head of very many headers, parameters, spaces or folds", "time grows with the bytes"),
    73: Fault(
        "a body in crumbs: chunks of a byte",
        "1,000 of any size, then one for each 256 bytes; closed",
        refused("invalid_value"),
    ),
    74: Fault("weight files and LoRAs of very many names", "time grows with the bytes"),
    75: Fault("a PNG of very many chunks", "time grows with the bytes"),
    76: Fault(
        "an upload that takes too long to decode, or ends what decodes it",
        "its process is ended; others are served",
        refused("invalid_image", "invalid_mask"),
    ),
    77: Fault("more and larger uploads than can be decoded", "waiting is nobody's fault", (OK, FULL)),
    78: Fault(
        "damaged uploads of all formats; EXIF of odd types; an indexed PNG without a palette",
        "what can be read is taken; the message names the parameter",
        (*refused("invalid_image", "invalid_mask"), OK),
    ),
    79: Fault("a content filter that takes long", "only those wait that it is asked about", (OK, FULL)),
    80: Fault(
        "SIGTERM beside answers, streams and pictures that nobody reads, and a filter that sleeps",
        "the end within 2 s of --drain-timeout",
        exit_codes=(0,),
    ),
    81: Fault(
        "clients behind one trusted proxy: a burst of one, one Idempotency-Key of two",
        "each is its forwarded address, in rate, queue, idempotency and log; a forged one is not believed",
        (OK, Answer(429, "rate_limit_exceeded")),
    ),
    82: Fault("idle connections that push a live upload out", "the idle give way first", refused("invalid_image")),
    83: Fault(
        "more connections than the limit on open files allows",
        "health and pictures are served; a line of log a second at most",
        (OK,),
    ),
    84: Fault(
        "bodies that are declared, or begun, and do not come",
        "what has come counts: others are served; the slowest give way",
        (OK, FULL),
    ),
    85: Fault("a stream that is not read, with large previews", "old previews are dropped, the newest is kept"),
    86: Fault(
        "a PNG whose few bytes of compressed text are very long, again and again", "a megabyte of it is told", (OK,)
    ),
    87: Fault(
        "a message to the agents' door of very many keys, values or levels",
        "refused before the SDK parses it on the event loop",
        refused("invalid_json"),
    ),
    88: Fault(
        "counts and sizes of other programs' fields that are negative, or no such thing",
        "named, by the door's own word",
        refused("invalid_value", "invalid_type"),
    ),
    89: Fault(
        "an agent that opens sessions without end, or uses another's",
        "a session serves its own client; of too many, whoever holds most loses its oldest",
        (OK, Answer(404, "not_found")),
    ),
    100: Fault("one picture too many, with and without a mask", answers=refused("too_many_images")),
    101: Fault("a picture smaller or longer than the model reads", answers=refused("invalid_image", "invalid_mask")),
    102: Fault("one of several pictures that is damaged, or none", answers=refused("invalid_image")),
    103: Fault("pictures to draw by that leave no room in memory for the size", answers=refused("invalid_size")),
    104: Fault("the worker dies while it draws by pictures", "it draws by them again", (OK,)),
    105: Fault("an NVFP4 file whose scales do not fit, or that has ComfyUI's marks", "named", exit_codes=(65,)),
    106: Fault("relatives of known models: klein KV, Z-Image Omni and ControlNets, Lumina", "named", exit_codes=(65,)),
    107: Fault("a shard that is not there", "named if any of it is read, else not missed", exit_codes=(65,)),
    108: Fault(
        "8-bit arithmetic that the device does not have, or against --storage",
        "says what the device has; nothing is computed otherwise than asked",
        exit_codes=(78,),
    ),
    110: Fault("a client whose small requests cost much to show and to write", "previews and encoding count as work"),
    111: Fault(
        "a queue that one client has filled",
        "others wait too, each until it holds an equal share, up to twice the queue",
        (FULL, OK),
    ),
    112: Fault(
        "thousands of keyed requests of one client",
        "its own oldest are forgotten; whoever holds less keeps his",
        (OK,),
    ),
    113: Fault(
        "large answers and streams that nobody reads, one or many",
        "what many ask for is held once; beyond a client's share, or that of all, the slowest to read is closed",
        (OK,),
    ),
    114: Fault(
        "a full disk as a large upload comes",
        "refused; what is small needs no disk",
        (STORAGE_FULL, OK),
    ),
    115: Fault("large pictures of many clients to decode", "one at a time, small ones beside it", (OK,)),
    116: Fault(
        "another program that computes beside the model",
        "the model's threads wait asleep, and a small model has few",
    ),
    117: Fault(
        "requests of one client that the content filter, or decoding, takes long for",
        "a client has a quarter of the filter's threads and half of the room at most; who holds fewest is next",
        (OK, FULL),
    ),
    118: Fault("a flood of connections with a request each", "requests begin by turns of those who send them", (OK,)),
    119: Fault(
        "all of these at once, from 30 connections of two keys",
        "an honest client is never refused, and waits little longer; memory has its bound; the end is in time",
        (OK,),
        (0,),
    ),
    120: Fault(
        "clients that time out again and again as their large pictures are done",
        "pictures kept for a retry have a bound in bytes; the oldest go first",
    ),
    121: Fault(
        "SIGTERM beside uploads whose decoding processes are stopped",
        "the end within 2 s of --drain-timeout, and no process is left",
        exit_codes=(0,),
    ),
    122: Fault(
        "SIGKILL of a server that draws what a key stands for, beside another of the same store",
        "the other draws it once more, by the same seed",
        (OK,),
    ),
    123: Fault(
        "a server that stands still for longer than its lease, then goes on",
        "both give the answer of the one that was first, to the byte",
        (OK,),
    ),
    124: Fault(
        "a picture, an answer or a claim in the shared store that is changed, emptied or removed",
        "never served; its key is drawn anew",
        (NOT_FOUND, Answer(410, "image_expired"), OK),
    ),
    125: Fault(
        "object storage that refuses connections, or takes them and is silent",
        "/readyz is 503; b64_json is served; all is well once it is back; no key in the log",
        (STORAGE_FULL, Answer(503, "store_unavailable"), OK),
    ),
    126: Fault(
        "a --store that cannot be reached or written, or holds what is not the servers'",
        "told by its name, before a model is loaded",
        exit_codes=(78,),
    ),
    127: Fault(
        "a serve config for Ray whose args are wrong, or would let everybody in", "told by name; nothing is deployed"
    ),
    128: Fault(
        "Ray's proxy answers by itself, in plain text or not at all",
        answers=(LOST, FULL, LOADING, Answer(504, "deadline_exceeded", False)),
    ),
    129: Fault(
        "SIGKILL of a replica of a cluster",
        "a keyed request is drawn by another, a stream ends with an error event; the rest is to be sent again",
        (OK, LOST),
    ),
    130: Fault("SIGKILL of the worker of a replica", "nothing is lost", (OK,)),
    131: Fault(
        "a body beyond the cap, or that never comes, before Ray's proxy",
        "not read on; closed",
        (TOO_LARGE, Answer(504, "deadline_exceeded", False)),
    ),
    136: Fault(
        "large JSON bodies: pictures however they are written, damaged, or text in their place",
        "read in the decoding process, as small ones are; what is wrong is named",
        (OK, *refused("invalid_image", "invalid_mask", "string_above_max_length", "unsupported_value")),
    ),
    137: Fault(
        "a JSON body of tens of megabytes; its process ends before its pictures are decoded",
        "the front holds a piece at a time; another process reads it again",
        (OK,),
    ),
    138: Fault(
        "a restart, or a worker's death, between two copies of a request on a CPU",
        "the same bytes: how many threads compute follows from the model and the machine",
    ),
    139: Fault("a flood of requests whose clients leave at once", "those that wait for their turn are not begun"),
    132: Fault(
        "SIGKILL of workers that hold their weights together, or of every process",
        "the next worker finds them there; nothing is left of them with the last",
        (OK,),
    ),
    133: Fault("SIGKILL of a worker while it makes a weight for others too", "it is made anew, and whole"),
    134: Fault(
        "more models than fit, worker kills, evictions and idle unloads in one flood",
        "each is answered once; none takes longer than three times what first come, first served would have given it",
        (OK,),
    ),
    135: Fault("a model loaded and unloaded again and again", "no process, memory or file of it is left", (OK,)),
    140: Fault("SIGKILL of one worker of several", "the others go on; its jobs run again", (OK,)),
    141: Fault(
        "one model of several whose load fails", "the others are served; a later load is tried", (OK, UNAVAILABLE)
    ),
    142: Fault("one model of several whose configuration is refused", "told before anything loads", exit_codes=(78,)),
    143: Fault("SIGKILL of a worker that loads for a request that waits", "loaded again", (OK,)),
    144: Fault("loading or unloading without an admin key", "nothing is loaded", (Answer(403, "admin_key_required"),)),
    145: Fault("more work for two models than fits, without end", "each has its turns; none starves", (OK,)),
    146: Fault("a model is unloaded while it draws", "the job is finished first", (OK,)),
    150: Fault(
        "the worker dies in the middle of an edit of a model that draws from pictures", "the same picture", (OK,)
    ),
    151: Fault("a text encoder of FLUX.3 without some of the layers that are read", "named", exit_codes=(65,)),
    152: Fault("the worker dies in the middle of an edit of FLUX.3 by several pictures", "the same picture", (OK,)),
    153: Fault("bench of a model that draws from a picture", "named before anything is timed", exit_codes=(2,)),
}
