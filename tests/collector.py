"""A collector of OpenTelemetry spans: it takes OTLP over HTTP and writes each span as a line of JSON to a file.

Run `python -m tests.collector FILE`; the first line on standard output is its port.
"""

import gzip
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Collector(BaseHTTPRequestHandler):
    path_of_file: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.headers["Content-Type"] == "application/x-protobuf"
        assert self.path == "/v1/traces"
        asked = ExportTraceServiceRequest.FromString(body)
        with self.path_of_file.open("a") as file:
            for resource in asked.resource_spans:
                [service] = [
                    one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
                ]
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found = {
                            "service": service,
                            "name": span.name,
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
                            "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                            "all": str(span),
                        }
                        file.write(json.dumps(found) + "\n")
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Collector.path_of_file = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    print(server.server_port, flush=True)
    server.serve_forever()
