umask 077
cat > /tmp/s3.json <<END
{"identities": [{"name": "presswork",
  "credentials": [{"accessKey": "$S3_ACCESS_KEY", "secretKey": "$S3_SECRET_KEY"}],
  "policyNames": ["presswork"]}],
 "policies": [{"name": "presswork", "content": "{\"Version\": \"2012-10-17\", \"Statement\": [ \
  {\"Effect\": \"Allow\", \"Action\": [\"s3:ListBucket\"], \
   \"Resource\": [\"arn:aws:s3:::$PRESSWORK_BUCKET\"]}, \
  {\"Effect\": \"Allow\", \"Action\": [\"s3:GetObject\", \"s3:PutObject\", \"s3:DeleteObject\", \
   \"s3:AbortMultipartUpload\"], \"Resource\": [\"arn:aws:s3:::$PRESSWORK_BUCKET/*\"]}]}"}]}
END
exec weed -logtostderr=true mini -dir=/data -ip=127.0.0.1 -ip.bind=0.0.0.0 -s3.config=/tmp/s3.json \
  -bucket="$PRESSWORK_BUCKET" -s3.iam=false \
  -s3.port=8333 -s3.port.iceberg=0 -s3.port.lance=0 -s3.autoCreateBucket=false \
  -s3.allowDeleteBucketNotEmpty=false -master.telemetry=false -master.resumeState=false \
  -master.volumeSizeLimitMB=1024 -volume.preStopSeconds=0 -admin.ui=false -webdav=false -disableHttp=true
